# Prints fio's job file without the jobs of comparisons that are not in the list:
#     awk -f select.awk LIST RS= JOBS
# LIST has lines WORK@TARGET; in JOBS, blank lines separate the jobs.

BEGIN { ORS = "\n\n" }
NR == FNR {
    listed[$1] = 1
    next
}
{
    name = $1
    sub(/@.*-/, "@", name)
    gsub(/^\[(beside:)?|\]$/, "", name)
    if (name == "global" || name in listed)
        print
}
