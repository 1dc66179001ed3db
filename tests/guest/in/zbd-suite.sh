# fio's t/zbd on $DISK: all of its tests, or those named in $TESTS. Logs of failed ones are shown.
# The tests look for fio where it is built.
ln -s /bin/fio /fio
set --
for n in $TESTS; do set -- "$@" -t "$n"; done
dmesg -n 1
bash /t/zbd/test-zbd-support "$@" "$DISK"
status=$?
for log in /t/zbd/test-zbd-support.log.*; do
    if [ "$(tail -n 1 "$log")" = FAIL ]; then
        echo "== $log ends"
        tail -n 30 "$log"
    fi
done
exit $status
