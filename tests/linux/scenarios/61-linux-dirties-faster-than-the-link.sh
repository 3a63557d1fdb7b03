# A guest that dirties memory faster than the link: pre-copy says that it does not converge and the guest stays, hybrid
# moves it.
# deadline: 240
# takes: 86
. "$BED/words.sh"

needs_mode hybrid
make_hosts
set_out dirty:16,clock
await B
downtime=1s
is_kept 'does not converge' --mode precopy --bandwidth "${SLOW_LINK:-50M}" --compression none
attempt --mode hybrid --bandwidth "${SLOW_LINK:-50M}" --compression none || fail "migrate ended with $?"
wait "$vmm" || fail "the source did not end well"
at=B vmm=$there station=1
goes_on
arrive
