"""One frame, from bytes to labels. Knows no HTTP."""
