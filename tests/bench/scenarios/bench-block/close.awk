# Prints WORK@TARGET for each comparison whose ratio is close to 1, so that it needs more rounds: the
# median over the rounds of our rate divided by another server's is between 0.8 and 1.25.
#
# The files are outputs of fio for whole rounds (ROUND.json, with jobs WORK@SERVER-TARGET), outputs
# of iperf3 (ROUND-WORK@SERVER-TARGET.json) and single rates (ROUND-WORK@SERVER-TARGET.rate). Round 0
# warms up and does not count.

FNR == 1 {
    file = FILENAME
    sub(/.*\//, "", file)
    round = file + 0
    name = file
    sub(/^[0-9]+-/, "", name)
    sub(/\.[a-z]+$/, "", name)
    received = 0
}
/"jobname"/ {
    split($0, quoted, "\"")
    name = quoted[4] ~ /^beside:/ ? "" : quoted[4]
}
/"bw_bytes" *:/ { add(value()) }
/"sum_received" *:/ { received = 1 }
received && /"bits_per_second" *:/ {
    add(value())
    received = 0
}
file ~ /\.rate$/ { add($1 + 0) }

# value(): returns the number of a line "NAME": NUMBER.
function value(text) {
    text = $0
    sub(/.*: */, "", text)
    return text + 0
}

# add(RATE): adds to the rate of this round and name. fio reports reads and writes one by one.
function add(rate, work, server, target) {
    if (!round || name !~ /@.*-/)
        return
    work = server = target = name
    sub(/@.*/, "", work)
    sub(/.*@/, "", server)
    sub(/-[^-]*$/, "", server)
    sub(/.*-/, "", target)
    rates[work "@" target, server, round] += rate
    tasks[work "@" target] = 1
    servers[server] = 1
    if (round > rounds)
        rounds = round
}

# is_close(TASK, SERVER): returns whether our rates are close to that server's.
function is_close(task, server, number, i, j, ratio, sorted) {
    number = 0
    for (i = 1; i <= rounds; i++) {
        if (!(rates[task, "ours", i] > 0 && rates[task, server, i] > 0))
            continue
        ratio = rates[task, "ours", i] / rates[task, server, i]
        for (j = ++number; j > 1 && sorted[j - 1] > ratio; j--)
            sorted[j] = sorted[j - 1]
        sorted[j] = ratio
    }
    if (!number)
        return 0
    ratio = (sorted[int((number + 1) / 2)] + sorted[int(number / 2) + 1]) / 2
    return ratio >= 0.8 && ratio <= 1.25
}

END {
    for (task in tasks) {
        for (server in servers) {
            if (server != "ours" && is_close(task, server)) {
                print task
                break
            }
        }
    }
}
