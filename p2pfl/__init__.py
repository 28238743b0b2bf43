"""p2pfl."""
