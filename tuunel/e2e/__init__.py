"""What forward and reverse proxy say to each other through the relay, which cannot read it. No I/O."""
