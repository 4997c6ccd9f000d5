"""Device and arithmetic are what was asked for, and fp32 on a CPU."""

import pytest
import torch

from mvmae.errors import UserError
from mvmae.training import precision

CPU = torch.device("cpu")


def product_type(name: str, device: torch.device = CPU) -> torch.dtype:
    """What a product of two fp32 matrices comes out as."""
    matrix = torch.ones(2, 2, device=device)
    with precision.autocast(device, name):
        return (matrix @ matrix).dtype


def test_cpu_is_cpu():
    assert precision.choose_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_auto_is_the_cpu_where_there_is_no_cuda():
    assert precision.choose_device("auto") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UserError, match="no CUDA device found: use --device cpu, or auto"):
        precision.choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_auto_is_cuda_and_bf16_where_there_is_cuda():
    device = precision.choose_device("auto")
    assert device == torch.device("cuda", 0)
    assert product_type("auto", device) == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_arithmetic_on_a_cpu(name, dtype):
    assert product_type(name) == dtype


def test_arithmetic_is_as_before_afterwards():
    product_type("bf16")
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
