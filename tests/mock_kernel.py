"""What the kernel of a notebook runs first under `make test DEVICE=mock`, by PYTHONSTARTUP."""

import mock_gpu

mock_gpu.install()
mock_gpu_of_this_kernel = mock_gpu.gpu()
mock_gpu_of_this_kernel.__enter__()  # and never left, as the kernel ends with its process
