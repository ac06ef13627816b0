"""Long lines on one machine: network namespaces, joined by links that hold every packet for a while."""
