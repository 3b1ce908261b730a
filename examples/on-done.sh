#!/bin/sh
# on_done: [/etc/stager/on-done.sh, lab-alerts@example.org]
# Mails what failed; the answer is on stdin, as JSON.
set -eu
case $WATCHERD_STATE in
    staged | already_staged | cancelled) exit 0 ;;
esac
{
    echo "$WATCHERD_NAME ($WATCHERD_BUILD): $WATCHERD_STATE, $WATCHERD_CODE"
    echo "see $WATCHERD_RESULT"
} | ${MAIL:-mail} -s "watcherd: $WATCHERD_NAME $WATCHERD_STATE" "$1"
