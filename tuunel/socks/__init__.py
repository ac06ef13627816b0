"""SOCKS5 and SOCKS4a, the codecs and the server side of their conversation, without any I/O."""
