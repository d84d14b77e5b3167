"""Label files of other tools, by their one name: YOLO and COCO, in and out. The work is in `yolo_files.py`,
`yolo_dataset.py` and `coco_files.py`."""

from __future__ import annotations

from bowerbird_server.labelling.coco_files import export_coco, import_coco
from bowerbird_server.labelling.file_faults import BadLabelFiles, Fault, ImportResult
from bowerbird_server.labelling.yolo_dataset import YoloDataset, YoloImage, read_yolo_dataset
from bowerbird_server.labelling.yolo_files import export_yolo, import_yolo

__all__ = [
    "BadLabelFiles",
    "Fault",
    "ImportResult",
    "YoloDataset",
    "YoloImage",
    "export_coco",
    "export_yolo",
    "import_coco",
    "import_yolo",
    "read_yolo_dataset",
]
