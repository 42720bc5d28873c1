# Grants 32 pages and keeps them.
load xen-gntalloc
echo "lab: kernel Linux $(uname -r), $(nproc) virtual processor(s), $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
probe share-pages 32 >/tmp/references &
wait_for "the process that grants pages" 10 test -s /tmp/references
echo "lab: references $(cat /tmp/references)"
read -r _
kill $!
