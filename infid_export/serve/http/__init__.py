"""HTTP below the routes: connections, who may send what, bodies, streams of events, and errors."""
