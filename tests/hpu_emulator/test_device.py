"""The emulated device in processes of its own: one runs the checks of each execution mode."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hpu_emulator.conftest import Emulated
from tools.hpu_emulator.install import DEFAULT, fingerprint

COMMON = ("tensors.py", "indices.py", "waiting.py")


def test_eager_mode_keeps_its_rules(emulated: Emulated) -> None:
    emulated.check(*COMMON, "eager_recipes.py", PT_HPU_LAZY_MODE="0")


def test_lazy_mode_keeps_its_rules(emulated: Emulated) -> None:
    emulated.check(*COMMON, "lazy_recipes.py", PT_HPU_LAZY_MODE="1")


def test_compile_only_mode_compiles_without_computing(emulated: Emulated) -> None:
    emulated.check("compile_only.py", PT_HPU_LAZY_MODE="1", PT_COMPILE_ONLY_MODE="1")


def test_a_small_device_runs_out_of_memory(emulated: Emulated) -> None:
    emulated.check("small_memory.py", PT_HPU_LAZY_MODE="1", HPU_EMULATOR_MEMORY="64MiB")


def test_only_programs_with_the_emulator_on_their_path_have_the_device(emulated: Emulated) -> None:
    code = "import torch; print(hasattr(torch, 'hpu'))"
    assert emulated.run(code).strip() == "True"
    assert emulated.run(code, PT_HPU_AUTOLOAD="0").strip() == "False"
    assert emulated.run(code, PT_HPU_LAZY_MODE="1").strip() == "False"
    assert emulated.run(code, PT_HPU_LAZY_MODE="1", PT_HPU_AUTOLOAD="1").strip() == "True"
    assert emulated.run(code, PYTHONPATH="").strip() == "False"


def test_the_distribution_has_the_name_and_version_that_probes_look_for(
    emulated: Emulated,
) -> None:
    code = "from importlib.metadata import version; print(version('habana-torch-plugin'))"
    assert emulated.run(code).strip() == "1.22.0.494"
    assert (DEFAULT / ".sources").read_text(encoding="utf-8") == fingerprint()


IDENTITY = """
    import json, torch
    import habana_frameworks.torch.utils.experimental as htexp
    print(json.dumps({
        "name": torch.hpu.get_device_name(),
        "type": htexp._get_device_type() == htexp.synDeviceType.synDeviceGaudi3,
        "gib": round(torch.hpu.mem_get_info()[1] / 2**30, 2),
        "count": torch.hpu.device_count(),
        "properties": torch.hpu.get_device_properties(0).total_memory,
    }))
"""


@pytest.mark.parametrize(("generation", "gib"), [("gaudi2", 94.62), ("gaudi3", 126.0)])
def test_generations_differ_in_name_and_memory(
    emulated: Emulated, generation: str, gib: float
) -> None:
    found = json.loads(emulated.run(IDENTITY, HPU_EMULATOR_GENERATION=generation))
    assert found["name"] == generation.upper()
    assert found["type"] is (generation == "gaudi3")
    assert (found["gib"], found["count"]) == (gib, 8)


def test_without_a_driver_there_are_no_devices_and_no_exception(emulated: Emulated) -> None:
    code = """
        import torch
        print(torch.hpu.is_available(), torch.hpu.device_count())
        torch.ones(1, device="hpu")
    """
    done = emulated.start(code, HPU_EMULATOR_DEVICES="0")
    assert done.stdout.split() == ["False", "0"]
    assert "No HPU devices are available" in done.stderr


HOLD = "import torch, sys; torch.hpu.init(); print('held', flush=True); sys.stdin.read()"
TAKE = """
    import os, torch
    from hpu_emulator import modules
    torch.hpu.init()
    print(modules.module_of(0))
"""


def test_a_module_belongs_to_one_process_at_a_time(emulated: Emulated) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=emulated.environment(HLS_MODULE_ID="1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline().strip() == "held"
        refused = emulated.start(TAKE, HLS_MODULE_ID="1")
        assert refused.returncode != 0
        assert "synStatus=8" in refused.stderr and "Device acquire failed" in refused.stderr
        assert emulated.run(TAKE, HABANA_VISIBLE_MODULES="1,5").strip() == "5"
        holder.stdin.close()
    assert emulated.run(TAKE, HLS_MODULE_ID="1").strip() == "1"


def test_set_device_chooses_among_the_visible_modules(emulated: Emulated) -> None:
    code = "import torch\ntorch.hpu.set_device({index})\n" + "import os\n"
    code += "torch.hpu.init(); from hpu_emulator import modules\n"
    code += "print(os.environ.get('HLS_MODULE_ID'), modules.module_of(0))"
    chosen = emulated.run(code.format(index=1), HABANA_VISIBLE_MODULES="2,3")
    assert chosen.split() == ["3", "3"]
    kept = emulated.run(code.format(index=1), HABANA_VISIBLE_MODULES="2,3", HLS_MODULE_ID="2")
    assert kept.split() == ["2", "2"]
    few = emulated.start(code.format(index=1), HPU_EMULATOR_DEVICES="4")
    assert "only device 0 can be used" in few.stderr
    beyond = emulated.start(code.format(index=2), HABANA_VISIBLE_MODULES="2,3")
    assert "2 visible devices" in beyond.stderr


def test_a_forked_process_cannot_use_the_device(emulated: Emulated) -> None:
    code = """
        import os, torch
        torch.ones(1, device="hpu")
        if (child := os.fork()) == 0:
            try:
                torch.ones(1, device="hpu")
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert "Cannot re-initialize HPU in forked subprocess" in emulated.run(code)


@pytest.mark.parametrize(
    ("switch", "statement", "error"),
    [
        ("no_sync", "x.cpu()", "HostSyncError"),
        ("no_compile", "x.exp()", "RecompilationError"),
        ("index", "x[torch.tensor([9]).to('hpu')]", "IndexRangeError"),
    ],
)
def test_switches_are_set_by_the_environment(
    emulated: Emulated, switch: str, statement: str, error: str
) -> None:
    code = f"import torch; x = torch.empty(3).to('hpu'); {statement}"
    assert error in emulated.start(code, HPU_EMULATOR_STRICT=switch).stderr
    assert emulated.start(code, HPU_EMULATOR_STRICT="dtype").returncode == 0


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HPU_EMULATOR_STRICT", "no_snyc", "no_snyc is not one of"),
        ("HPU_EMULATOR_GENERATION", "gaudi9", "one of gaudi2, gaudi3"),
        ("HPU_EMULATOR_MEMORY", "lots", "bytes, or a number followed by"),
        ("HPU_EMULATOR_DEVICES", "many", "not an integer"),
        ("HABANA_VISIBLE_MODULES", "0,x", "comma-separated list"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    emulated: Emulated, variable: str, value: str, message: str
) -> None:
    assert message in emulated.start("import torch", **{variable: value}).stderr


def test_ops_placed_on_the_host_are_counted_or_forbidden(emulated: Emulated) -> None:
    code = """
        import torch
        from hpu_emulator import fallbacks
        x = torch.ones(3, device="hpu")
        {statement}
        print(dict(fallbacks.counts()))
    """
    softmax = code.format(statement="x.softmax(0)")
    assert emulated.run(softmax).strip() == "{}"
    assert "softmax" in emulated.run(softmax, PT_HPU_PLACE_ON_CPU="_softmax,sort")
    complex_op = code.format(statement="torch.complex(x, x)")
    assert "aten::complex" in emulated.run(complex_op)
    refused = emulated.start(complex_op, PT_HPU_PLACE_ON_CPU="none")
    assert "PT_HPU_PLACE_ON_CPU=none" in refused.stderr


def test_keys_of_recipes_are_the_same_in_every_process(emulated: Emulated) -> None:
    code = """
        import torch
        from hpu_emulator import recipes
        {before}
        x = torch.empty(3, device="hpu")
        recipes.reset()
        x.{op}()
        print(recipes.compilations()[-1].key)
    """
    alone = emulated.run(code.format(before="", op="exp"))
    later = emulated.run(code.format(before="torch.ones(2, 2, device='hpu').cos()", op="exp"))
    other = emulated.run(code.format(before="", op="sin"))
    assert alone == later != other


def test_negative_indices_wrap_and_gelu_is_exact_only_where_it_is_asked_for(
    emulated: Emulated,
) -> None:
    code = """
        import torch
        x = torch.arange(1.0, 4.0)
        y = x.to("hpu")
        print(y[torch.tensor([-1]).to("hpu")].item())
        gelu = torch.nn.functional.gelu
        print((gelu(y).cpu() - gelu(x)).abs().max().item() < 1e-6)
    """
    assert emulated.run(code).split() == ["0.0", "False"]
    asked = emulated.run(
        code, PT_HPU_ENABLE_NEGATIVE_INDEXING="true", PT_HPU_FORCE_TANH_FOR_GELU="0"
    )
    assert asked.split() == ["3.0", "True"]


INTERFACE = "from hpu_emulator import interfaces; print(interfaces.candidates()[0])"


def test_hccl_takes_the_interface_that_its_variable_names_and_else_one_that_leads_out(
    emulated: Emulated,
) -> None:
    outside = [name for _, name in socket.if_nameindex() if not name.startswith(("lo", "docker"))]
    assert emulated.run(INTERFACE, HCCL_SOCKET_IFNAME="lo").strip() == "lo"
    assert emulated.run(INTERFACE, HCCL_SOCKET_IFNAME="wrong7,l").strip() == "lo"
    found = emulated.run(INTERFACE, GLOO_SOCKET_IFNAME="lo").strip()
    assert found in outside or not any(map(is_up, outside)), (found, outside)
    done = emulated.start(INTERFACE, HCCL_SOCKET_IFNAME="wrong7")
    assert "no network interface that is up begins as HCCL_SOCKET_IFNAME=wrong7" in done.stderr


def is_up(name: str) -> bool:
    return bool(int(Path(f"/sys/class/net/{name}/flags").read_text(), 16) & 1)
