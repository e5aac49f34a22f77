"""Where candidates come from: sockets, STUN servers, relays (RFC 8445 section 5.1.1)."""
