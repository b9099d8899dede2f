"""The routes, by what they are about. Each module has one function that returns its routes for a service."""
