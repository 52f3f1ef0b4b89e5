#!/bin/bash
# Makes an image of a commit: its files in /app, on top of a base image. Usage: image-of-commit.sh BASE NEW [COMMIT]
#
# The same commit and base give the same image, whenever and by whomever it is made: times and modes come from git, and
# so does the time that the image was made at. Name the base by its digest, since a tag may mean another image tomorrow.
# (The compressed layer is the same for the same zlib; the diffID in any case.)
set -euo pipefail
base=$1 new=$2 commit=$(git rev-parse --verify "${3:-HEAD}^{commit}")

SOURCE_DATE_EPOCH=$(git show --no-patch --format=%ct "$commit")
export SOURCE_DATE_EPOCH
pullpipe pull --quiet --policy missing "$base" >/dev/null
git -c tar.umask=022 archive --prefix=app/ "$commit" |
    pullpipe layer add --quiet --replace --message "commit $commit" --tag "$new" "$base" - >/dev/null
pullpipe config --quiet --workdir /app --label "org.opencontainers.image.revision=$commit" "$new"
