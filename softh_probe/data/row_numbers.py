"""Number the rows of the data as their documents are read."""

from __future__ import annotations

from softh_probe.errors import InputError


class RowNumbers:
    """Number rows 0, 1, 2 … in the order of their documents, which follow one another.

    >>> numbers = RowNumbers()
    >>> [numbers.of_next(row) for row in (0, 0, 1, None, None, 7, 7)]
    [0, 0, 1, 2, 3, 4, 4]
    """

    def __init__(self) -> None:
        self._number = -1
        self._n_documents = 0
        self._before: int | None = None  # what the document before was given
        self._greatest: int | None = None

    def of_next(self, given: int | None) -> int:
        """Number the row of the next document.

        Args:
            given: `Document.row`; None for a document that is a row of its own.

        Raises:
            InputError: the rows of documents do not ascend, so that documents of one row may stand apart.
        """
        self._n_documents += 1
        if given is None or given != self._before:
            if given is not None and self._greatest is not None and given <= self._greatest:
                raise InputError(
                    f"documents: number {self._n_documents} is of row {given}, which comes after row {self._greatest}; "
                    "give the documents of a row one after the other, and number rows in their order"
                )
            self._number += 1
        self._before = given
        self._greatest = self._greatest if given is None else given
        return self._number
