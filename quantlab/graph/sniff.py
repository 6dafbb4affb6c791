"""What a file that is no ONNX model looks like, so that the message can say it."""

from __future__ import annotations

_MAGIC: tuple[tuple[int, bytes, str, str | None], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model itself", "run `git lfs pull`"),
    (
        0,
        b"PK\x03\x04",
        "a ZIP archive (a PyTorch .pt, NumPy .npz or Keras file?)",
        "export it to ONNX, as with torch.onnx.export",
    ),
    (0, b"\x80\x02", "a Python pickle (an old PyTorch file?)", "export it to ONNX, as with torch.onnx.export"),
    (0, b"ptrt", "a TensorRT engine", "give the ONNX model that it was built from"),
    (0, b"ftrt", "a TensorRT engine", "give the ONNX model that it was built from"),
    (4, b"TFL3", "a TensorFlow Lite model", "export the original model to ONNX"),
    (4, b"ORTM", "an ONNX Runtime .ort model", "give the .onnx that it was converted from"),
    (0, b"\x89HDF", "an HDF5 file (Keras weights?)", "export the model to ONNX"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x89PNG", "a PNG image", None),
    (0, b"\xff\xd8\xff", "a JPEG image", None),
    (0, b"GGUF", "a GGUF model", None),
)


def looks_like(head: bytes) -> tuple[str, str | None] | None:
    """Guess the format of a file from its first bytes.

    Args:
        head: The first 512 bytes or more.

    Returns:
        What it looks like and a hint, or None if nothing known fits.
    """
    for offset, magic, what, hint in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return what, hint
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page (a download that needed a login?)", "download the file itself"
    if text.startswith(b"<?xml"):
        return "an XML file (an OpenVINO .xml?)", "give the ONNX model"
    if text.startswith((b"{", b"[")):
        return "a JSON file", None
    return ("a text file", None) if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a character cut in two at the end is text still
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(character.isprintable() or character in "\t\n\r\x1b" for character in text)


def starts_like_onnx(head: bytes) -> bool:
    """Whether the bytes begin like a serialized ModelProto: field 1 (``ir_version``) as a small number."""
    return len(head) >= 2 and head[0] == 0x08 and 1 <= head[1] <= 0x20
