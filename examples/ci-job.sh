#!/bin/bash
# A job of a CI, without root and without a daemon: runs a command on the sources in this directory, which it cannot
# change, without a network. Only what it puts into /results stays, in ./results. Usage: ci-job.sh IMAGE COMMAND…
#
# The exit code is the command's. CI_CACHE names the directory that images are kept in from job to job.
set -euo pipefail
image=$1
shift
export PULLPIPE_ROOT=${CI_CACHE:-$HOME/.cache/ci-images}
mkdir -p results

# Without an answer from the registry, the image of the last job will do. What has run is in the log, by digest.
echo "image $(pullpipe pull --quiet --policy newer "$image")"
code=0
pullpipe run --rm --init --pull never --network none --read-only --tmpfs /tmp \
    --volume "$PWD:/src:ro" --volume "$PWD/results:/results" --workdir /src "$image" "$@" || code=$?
pullpipe prune --all --filter until=7d >/dev/null # images that were pulled before that
exit "$code"
