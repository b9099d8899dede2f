"""What the server keeps: people and templates, in memory or in folders."""
