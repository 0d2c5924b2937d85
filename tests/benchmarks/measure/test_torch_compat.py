"""Each private torch API, and each that torch versions differ in, does what we use it for.

A torch that lacks one, or means something else by it, fails the test that names it.
"""

import ast
import functools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist

import impls
from benchmarks import ROOT
from benchmarks.measure import torch_compat
from benchmarks.plan.cli import world
from impls.shared.compile import compile_whole, is_fake, raised_recompile_limit

ALLOWED = ("benchmarks/measure/torch_compat.py", "impls/shared/compile.py")
# What looks like a private API of torch, and is none.
NOT_TORCH = {
    "_exit": "os",
    "_fields": "a named tuple",
    "_implicit_cvt": "triton, whose interpreter is mended",
    "_replace": "a named tuple",
}


OWN = ("self", "cls", "super()")  # a method's own object


def private_names(tree: ast.AST) -> Iterator[str]:
    """Imports from torch with a part that begins with one underscore, and such attributes.

    An attribute counts whatever it is an attribute of, but for a method's own object: an operator
    of torch has private ones too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in OWN:
            dotted = [] if node.attr in NOT_TORCH else [f"torch.{node.attr}"]
        else:
            continue
        for name in dotted:
            top, *parts = name.split(".")
            if top == "torch" and any(part[0] == "_" and part[:2] != "__" for part in parts):
                yield f"line {getattr(node, 'lineno', 0)}: {name}"


def test_no_other_module_uses_a_private_name_of_torch() -> None:
    files = [file for of in ("benchmarks", "impls", "tests") for file in (ROOT / of).rglob("*.py")]
    found = {
        file.relative_to(ROOT).as_posix(): [*private_names(ast.parse(file.read_text("utf-8")))]
        for file in files
    }
    assert all(found[name] for name in ALLOWED)  # it sees those that there are
    assert {name: uses for name, uses in found.items() if uses and name not in ALLOWED} == {}


def test_torch_autograd_profiler_profile_has_every_allocation_in_order() -> None:
    def run() -> None:
        for size in (1000, 5000):
            torch.empty(size, dtype=torch.uint8)

    events = torch_compat.allocator_events(run)
    assert [size for _, size in events] == [1000, -1000, 5000, -5000]
    assert events[0][0] == events[1][0] != 0


def test_torch_cuda_sleep_keeps_the_device_busy() -> None:
    assert hasattr(torch.cuda, "_sleep")  # without CUDA too
    if not torch.cuda.is_available():
        return
    torch_compat.spin(1)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch_compat.spin(10_000_000)
    end.record()
    torch.cuda.synchronize()
    assert start.elapsed_time(end) > 1  # milliseconds, at less than 10 GHz


def test_torch_utils_python_dispatch_TorchDispatchMode_sees_operators() -> None:
    seen = []

    class Mode(torch_compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.name(), func.namespace, func.is_view, func.tags))
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2).exp_().view(2, 1)
    names, namespaces, views, tags = zip(*seen, strict=True)
    assert names == ("aten::ones", "aten::exp_", "aten::view")
    assert set(namespaces) == {"aten"}
    assert views == (False, False, True)
    assert torch.Tag.pointwise in tags[1]


def test_torch_utils_pytree_tree_leaves_flattens_what_is_nested() -> None:
    assert torch_compat.tree_leaves({"a": [1, (2, 3)], "b": 4}) == [1, 2, 3, 4]


def test_torch_subclasses_FakeTensorMode_makes_tensors_without_elements() -> None:
    with torch_compat.FakeTensorMode():
        tensor = torch.empty(2**20, 2**20)
        assert is_fake(tensor)
        assert is_fake(tensor.sum())
    assert not is_fake(torch.empty(1))


def test_torch_functorch_config_refuses_the_address_of_a_fake_tensor() -> None:
    with torch_compat.strict_fake_mode():
        tensor = torch.empty(2, 3)
        with pytest.raises(RuntimeError, match="data pointer"):
            tensor.data_ptr()


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.nonzero])
def test_torch_subclasses_errors_are_raised_where_the_data_decide(ask) -> None:
    with torch_compat.FakeTensorMode(), pytest.raises(torch_compat.DATA_DEPENDENT_ERRORS):
        ask(torch.ones(()))


def test_OpOverload_schema_says_what_is_changed() -> None:
    schema = torch_compat.schema_of(torch.ops.aten.mul_.Tensor)
    assert schema.name == "aten::mul_"
    assert [argument.name for argument in schema.arguments] == ["self", "other"]
    changed, read = (argument.alias_info for argument in schema.arguments)
    assert changed.is_write
    assert read is None


def test_torch_utils_flop_counter_flop_registry_has_the_products() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    formula = torch_compat.flop_formula(torch.ops.aten.mm.default)
    assert formula is not None
    assert formula(a, b, out_val=a @ b) == 2 * 2 * 3 * 5
    assert torch_compat.flop_formula(torch.ops.aten.add.Tensor) is None


def test_torch_library_OPDEFS_has_the_function_behind_an_operator() -> None:
    def negated(x: torch.Tensor) -> torch.Tensor:
        return -x

    operator = torch.library.custom_op("tests_torch_compat::negated", mutates_args=())(negated)
    assert operator(torch.ones(1)) == -1
    registered = torch.ops.tests_torch_compat.negated.default
    assert torch_compat.python_body(registered) is negated
    assert torch_compat.python_body(torch.ops.aten.neg.default) is None


def test_Storage_cdata_tells_who_shares_memory() -> None:
    with torch_compat.FakeTensorMode():
        a, b = torch.ones(4), torch.ones(4)
        assert torch_compat.storage_id(a) == torch_compat.storage_id(a[1:])
        assert torch_compat.storage_id(a) != torch_compat.storage_id(b)


def test_torch_distributed_tools_MemTracker_snapshot_has_Total() -> None:
    with torch_compat.FakeTensorMode():
        tracker = torch_compat.memory_tracker()()
        with tracker:
            kept = torch.empty(1024)
            torch.empty(4096).exp()
        assert torch_compat.bytes_held(tracker) == kept.nbytes
        assert torch_compat.bytes_held(tracker, "peak") == kept.nbytes + 2 * 4 * 4096


def test_torch_testing_internal_FakeStore_makes_a_rank_of_many() -> None:
    with world(4):
        assert (dist.get_rank(), dist.get_world_size()) == (0, 4)
        dist.all_reduce(torch.ones(1))  # waits for no one


@pytest.fixture
def alone(tmp_path) -> Iterator[None]:
    """This process as the only rank of gloo."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_c10d_functional_wait_tensor_and_Work_unbox_wait(alone) -> None:
    results = []

    class Waits(torch_compat.TorchDispatchMode):
        @classmethod
        def ignore_compile_internals(cls) -> bool:
            return True

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.name():
                torch_compat.wait(result)
                results.append((func.name(), type(result)))
            return result

    ones = torch.ones(3)
    with Waits():
        dist.all_reduce(ones)
        dist.barrier()
        torch.compile(lambda x: dist.all_reduce(x), backend="eager")(ones)
    assert results == [
        ("c10d::allreduce_", tuple),
        ("c10d::barrier", torch.ScriptObject),
        ("_c10d_functional::all_reduce", torch.Tensor),
    ]


def test_create_work_from_future_ends_with_the_future(alone) -> None:
    future = torch.futures.Future()
    work = torch_compat.work_of(future)
    future.set_result([torch.ones(1)])
    torch_compat.wait(work)
    torch_compat.wait(([torch.ones(1)], work))


def call_with_ten_kinds(compiled: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for dimensions in range(10):
        assert compiled(torch.ones([2] * dimensions)).sum() == 2 * math.prod([2] * dimensions)


def test_torch_dynamo_config_recompile_limit_rises() -> None:
    """Without it a whole graph raises for a ninth kind of tensors."""
    with pytest.raises(Exception, match="fullgraph=True"):
        call_with_ten_kinds(torch.compile(lambda x: 2 * x, fullgraph=True, backend="eager"))
    with raised_recompile_limit():
        call_with_ten_kinds(torch.compile(lambda x: 2 * x, fullgraph=True, backend="eager"))


def test_torch_compile_is_given_a_recompile_limit(monkeypatch) -> None:
    """By an argument since torch 2.13, before that by the setting."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    call_with_ten_kinds(compile_whole(lambda x: 2 * x))


def test_torch_dynamo_counters_count_graphs() -> None:
    before = torch_compat.compiled_graphs()
    compiled = torch.compile(lambda x: 2 * x, backend="eager")
    for _ in range(2):
        compiled(torch.ones(2))
    assert torch_compat.compiled_graphs() == before + 1


def test_torch_nn_LinearCrossEntropyOptions_is_missed_by_one_loss_alone() -> None:
    """torch 2.11 has none."""
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        assert impls.load("linear.torch_chunked").options
    else:
        with pytest.raises(impls.Unavailable, match="needs another version of torch"):
            impls.load("linear.torch_chunked")


def test_torch_hub_tqdm_has_a_monitor_that_can_be_stopped(monkeypatch) -> None:
    monkeypatch.setattr(torch.hub.tqdm, "monitor_interval", 10, raising=False)
    torch_compat.stop_progress_monitor()
    assert torch.hub.tqdm.monitor_interval == 0
