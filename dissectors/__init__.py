"""scapy layers and payload dissectors; nothing here is loaded by the core at start-up."""
