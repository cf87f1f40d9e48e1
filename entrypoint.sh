#!/bin/sh
# The container's first program: kevip with the container's arguments and environment.
set -eu
exec kevip "$@"
