"""A checkpoint as OpenVINO's format, in half precision.

python convert_openvino.py CHECKPOINT TARGET
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig


def main() -> None:
    checkpoint, target = map(Path, sys.argv[1:])
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    main_export(
        str(checkpoint),
        part,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="fp16"),
        convert_tokenizer=True,
    )
    part.rename(target)


if __name__ == "__main__":
    main()
