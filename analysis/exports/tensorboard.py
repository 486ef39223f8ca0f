"""TensorBoard event files of run directories: `<out>/<run>/events...`, one more for each export with news.

Needs the package `tensorboard`, which is an optional extra; it needs neither TensorFlow nor torch.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from analysis.errors import InputError
from analysis.exports.rows import config, fresh, remember, rows, runs_of


def export(folders: list[Path], out: Path) -> dict[str, int]:
    """Write what is new; returns the number of new rows by run.

    Raises:
        InputError: the package `tensorboard` is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise InputError("tensorboard: this export needs the package: pip install tensorboard") from None

    def text(tag: str, value: str) -> Summary:
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[value.encode()], tensor_shape=shape)
        return Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)])

    written = {}
    for run in runs_of(folders):
        place = out / run.name
        found = rows(run)
        new = fresh(found, place)
        written[run.name] = sum(map(len, new.values()))
        if not written[run.name]:
            continue
        place.mkdir(parents=True, exist_ok=True)
        first = not any(place.glob("events.*"))
        writer = EventFileWriter(str(place))
        if first:
            settings = yaml.safe_dump(config(run), sort_keys=False)
            indented = "".join(f"    {line}\n" for line in settings.splitlines())  # Markdown for "as it is"
            writer.add_event(Event(step=0, summary=text("config", indented)))
        for table in new.values():
            for step, values in table:
                summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
                writer.add_event(Event(step=step, summary=summary))
        writer.close()
        remember(found, place)
    return written
