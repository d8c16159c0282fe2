"""What runs on request only: Triton kernels for CUDA devices, and the operators around them."""
