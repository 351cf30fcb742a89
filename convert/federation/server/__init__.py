"""The side that averages: it checks what the sites send, and writes the bundle."""
