"""CacheJournal: which contents of the prefix cache became known, and which ceased to be."""

from __future__ import annotations

from vllm.messages.engine import NEWS_BYTES, CacheNews


class NetNews:
    """Changes since the last `take`: what was undone in between is not in them.

    Of each content there is at most one change, so that there are no more than contents that were
    known at the last `take` and contents that are known now.
    """

    def __init__(self) -> None:
        self._changes: dict[bytes, bool] = {}  # by NEWS_BYTES of the content

    def note(self, name: bytes, is_added: bool) -> None:
        """A content that was absent is there, or the reverse: the two happen in turn."""
        if self._changes.pop(name, None) is None:
            self._changes[name] = is_added

    def note_all(self, news: CacheNews) -> None:
        for names, is_added in ((news.added, True), (news.removed, False)):
            for begin in range(0, len(names), NEWS_BYTES):
                self.note(names[begin : begin + NEWS_BYTES], is_added)

    def take(self) -> CacheNews | None:
        """What has changed; None if nothing has."""
        if not self._changes:
            return None
        changes, self._changes = self._changes, {}
        added = [name for name, is_added in changes.items() if is_added]
        removed = [name for name, is_added in changes.items() if not is_added]
        return CacheNews(b"".join(added), b"".join(removed))


class CacheJournal(dict[bytes, int]):
    """The table of known contents of one KV group, block by content, which notes its changes.

    A BlockPool uses it in place of a plain dictionary, so that a pool without a journal does
    nothing for it. Items are set and deleted one by one; no other method may change the table.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group
        self._news = NetNews()

    def __setitem__(self, content: bytes, block: int) -> None:
        assert content not in self, "the first block of a content stays"
        super().__setitem__(content, block)
        self._news.note(content[:NEWS_BYTES], True)

    def __delitem__(self, content: bytes) -> None:
        super().__delitem__(content)
        self._news.note(content[:NEWS_BYTES], False)

    def take(self) -> CacheNews | None:
        """Changes since the last call; None if there are none."""
        return self._news.take()
