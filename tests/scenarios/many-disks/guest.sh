# Checks that each disk's name and content match its position, and writes to it.
found() {
    [ "$(ls -d /sys/block/vd* | wc -l)" = 64 ]
}

wait_for "64 disks" 60 found
set --
for letter in a b c d e f g h i j k l m n o p; do
    set -- "$@" "xvd$letter" "xvd${letter}1" "xvd${letter}2" "xvd${letter}3"
done
for second in "" a b; do
    for third in a b c d e f g h i j k l m n o p q r s t u v w x y z; do
        [ $# != 0 ] || break
        disk=/dev/vd$second$third
        [ "$(cat "/sys/block/${disk#/dev/}/serial")" = "$1" ]
        [ "$(head -n 1 $disk)" = "$1" ]
        echo "guest $1" | dd of=$disk seek=1 conv=fsync 2>/dev/null
        shift
    done
done
[ $# = 0 ]
