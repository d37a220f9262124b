"""Speed and memory of vsockdump beside its peers: generator, runners, one command."""
