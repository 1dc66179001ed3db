# fio's t/zbd on $DISK: all of its tests, or those named in $TESTS. Logs of failed ones are shown.
# The tests look for fio where it is built.
ln -s /bin/fio /fio
# They ask a SCSI tool whether reads past the write pointer are allowed and take "no answer" for yes.
printf '#!/bin/sh\nexit 1\n' >/bin/sg_inq
chmod +x /bin/sg_inq
set --
for n in $TESTS; do set -- "$@" -t "$n"; done
dmesg -n 1
# Through a pipe, or it colours its words.
{
    bash /t/zbd/test-zbd-support "$@" "$DISK"
    echo $? >/tmp/status
} | cat
status=$(cat /tmp/status)
for log in /t/zbd/test-zbd-support.log.*; do
    if [ "$(tail -n 1 "$log")" = FAIL ]; then
        echo "== $log ends"
        tail -n 30 "$log"
    fi
done
exit $status
