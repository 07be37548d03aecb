"""Stream records as Lambda passes them to a function: JSON, with binary values as Base64 text."""

from __future__ import annotations

from vigil_core.store.stream import stream_records


def test_stream_images_are_decoded_into_rows() -> None:
    image = {
        "entity": {"S": "wait"},
        "version": {"N": "3"},
        "final_met": {"B": "AAEC/w=="},
        "outcomes": {"M": {"B": {"S": "no binary"}}},
    }
    event = {"Records": [{"dynamodb": {"SequenceNumber": "111", "NewImage": image}}]}
    (record,) = stream_records(event)
    assert (record.sequence_number, record.old()) == ("111", None)
    assert record.new() == {
        "entity": "wait",
        "version": 3,
        "final_met": b"\x00\x01\x02\xff",
        "outcomes": {"B": "no binary"},
    }
