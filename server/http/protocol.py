"""What the HTTP server and the application behind it agree on."""

# In a WSGI environment, what answers the request: Granian's, with response_bytes(status, headers,
# body). Under another server, which has a limit of its own, it is not there.
PROTOCOL = "lineside.protocol"
# Among a Flask application's extensions: what is switched on, for the log.
FEATURES = "lineside.features"
# In a WSGI environment, true once the server is told to stop: whoever balances load goes elsewhere.
LEAVING = "lineside.leaving"
