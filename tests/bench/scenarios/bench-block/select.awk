# Prints fio's job file without the jobs of comparisons that are not in the list. The first file is
# the list, lines WORK@TARGET; the second is the job file, in which blank lines separate the jobs.

BEGIN { ORS = "\n\n" }
NR == FNR {
    listed[$1] = 1
    RS = ""
    next
}
{
    name = $1
    sub(/@.*-/, "@", name)
    gsub(/^\[(beside:)?|\]$/, "", name)
    if (name == "global" || name in listed)
        print
}
