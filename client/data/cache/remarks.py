"""What a build noted of the pixels, as the strings that a person reads."""

from collections.abc import Sequence

import pandas as pd

from client.data.cache.journal import Chunk
from client.data.pixels.notes import Note, first_names, remarks


def pixel_remarks(chunks: Sequence[Chunk], images: "pd.Series[str]") -> list[str]:
    """One string a kind of note. images: the name of every row's image."""
    return remarks(
        (f"mask {images[noted.row]}" if noted.what == "mask" else images[noted.row],
         Note(noted.code, noted.detail))
        for chunk in chunks
        for noted in chunk.notes
    )  # fmt: skip


def identical_images(
    index: pd.DataFrame, digests: "pd.Series[str]", files: "pd.Series[str]"
) -> list[str]:
    """A remark when images of several patients show the same pixels, else nothing.

    index: the cache's index; digests: by its `row`, the hash of what each image shows, "" for
    those that show nothing; files: likewise, the hash of its file. Such images are one film
    under two identities; when one lies in train and one in test, the test knows the answer.
    Pictures whose files are all equal byte for byte were told when the archive was opened.
    """
    rows = index["row"]
    shown = index.assign(digest=digests.loc[rows].to_numpy(), file=files.loc[rows].to_numpy())
    shown = shown[shown["digest"].ne("")]
    kinds = shown.groupby("digest", sort=False)[["patient", "file"]].transform("nunique")
    shared = shown[kinds.gt(1).all(axis=1)]
    if not len(shared):
        return []
    alike = shared.groupby("digest", sort=False)
    pairs = [" = ".join(images[:3]) for images in alike["image"].agg(list)]
    across = int(alike["split"].agg(lambda splits: {"train_val", "test"} <= set(splits)).sum())
    lists = f", {across} of them in both official lists" if across else ""
    found = f"{len(shared)} images of {shared['patient'].nunique()} patients are"
    return [f"{found} {len(pairs)} pictures{lists}, equal in every pixel: {first_names(pairs)}"]
