"""A real kernel to capture from: boots one in a virtual machine and makes vsock traffic in it."""
