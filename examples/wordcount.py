"""Count the words of a text: the work that the demonstration fleet does.

The task's text comes on standard input, the result goes to standard output.
"""

import collections
import json
import re
import sys

words = re.findall(r"[^\W\d_]+", sys.stdin.read().lower())
common = collections.Counter(words).most_common(3)
result = {"words": len(words), "distinct": len(set(words)), "common": dict(common)}
json.dump(result, sys.stdout)
