"""Below the routes: sockets, TLS, HTTP's own limits, and how serving begins and ends."""
