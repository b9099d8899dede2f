"""An HTTP server on an engine folder: OpenAI's images API, people, templates, and a page to try it.

`app.create_app` returns the application, `server.serve` runs it on this machine, and `ray.app` on a Ray cluster.
Requests become jobs in one queue, which one thread per process draws. Needs the extra `serve`.
"""
