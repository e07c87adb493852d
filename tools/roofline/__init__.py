"""Cost model of the GPU kernels: bytes and operations of every launch, and the peak of memory."""
