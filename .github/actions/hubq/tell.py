"""Keeps one issue for each card whose base model moved on: MOVED is what status.sh put out of the cards below CARDS."""

from __future__ import annotations

import json
import os

from github import ask, every

TITLE = "{folder}: {source} moved on"
BODY = """`hubq status` found:

{findings}

Pin the new commit in `{folder}/hubq.toml`, then run the workflow Release.
"""


def main() -> None:
    """Opens the issues that are missing and brings open ones up to date. One that was closed stays so until there is news."""
    issues: dict[str, dict[str, str]] = {}
    for issue in every("issues?state=all"):  # newest first
        if "pull_request" not in issue and (issue["state"] == "open" or issue["title"] not in issues):
            issues[issue["title"]] = issue
    for card in json.loads(os.environ["MOVED"]):
        names = {"folder": f"{os.environ['CARDS']}/{card['folder']}", "source": card["source"]}
        title = TITLE.format(**names)
        body = BODY.format(findings="\n".join(f"* {finding['text']}" for finding in card["findings"]), **names)
        tell(title, body, issues.get(title))


def tell(title: str, body: str, issue: dict[str, str] | None) -> None:
    """Opens an issue or changes the open one, where it does not say so already."""
    if issue and issue["body"] == body:
        return print(f"known: {title}")
    if issue and issue["state"] == "open":
        ask("PATCH", f"issues/{issue['number']}", {"body": body})
    else:
        ask("POST", "issues", {"title": title, "body": body})
    print(f"told: {title}")


if __name__ == "__main__":
    main()
