"""One module per image format, each with `read_header(data)` and `decode(data, header)`."""
