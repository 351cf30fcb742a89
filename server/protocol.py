"""What the HTTP server and the application behind it agree on."""

# In a WSGI environment, what answers the request: Granian's, with response_bytes(status, headers,
# body). Under another server, which has a limit of its own, it is not there.
PROTOCOL = "lineside.protocol"
# There too, a list of functions to be called once the answer was handed to the HTTP server. Under
# another server it is not there.
AFTERWARDS = "lineside.afterwards"
# Threads that may wait for bodies.
MOST_READING = 56
