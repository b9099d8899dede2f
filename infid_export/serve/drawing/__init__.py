"""Drawing: jobs, the queue that says who is next, the thread that uses the engines, and previews."""
