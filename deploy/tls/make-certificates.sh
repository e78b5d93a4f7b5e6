#!/bin/sh
# A CA, certificates for the broker and its three kinds of clients, and the identities file.
#
#   deploy/tls/make-certificates.sh FOLDER [NAME_OF_BROKER …]
#
# The broker's certificate names localhost, broker (Compose) and broker.keepa.svc
# (Kubernetes); further names follow the folder. A second run reuses the CA in FOLDER and
# renews the certificates; running programs load them by themselves. Keep ca.key away from
# all machines.
set -eu
umask 077

folder=${1:?say which folder to write to}
shift
days=${DAYS:-365}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

# issue NAME SUBJECT_ALT_NAMES USAGE: NAME.crt and NAME.key.
issue() {
    key "$1.key.new"
    openssl req -new -key "$1.key.new" -subj "/CN=$1" -out "$1.csr"
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=CA:FALSE\n' "$2" "$3" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" \
        -extfile "$1.ext" -out "$1.crt.new" 2>/dev/null
    # Written into the old files, because a container keeps seeing those.
    cat "$1.key.new" >"$1.key"
    cat "$1.crt.new" >"$1.crt"
    rm "$1.key.new" "$1.crt.new" "$1.csr" "$1.ext"
}

if [ ! -s ca.key ]; then
    key ca.key
    openssl req -x509 -new -key ca.key -subj "/CN=token broker CA" -days 3650 \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
fi

names="DNS:broker,DNS:broker.keepa,DNS:broker.keepa.svc,DNS:localhost,IP:127.0.0.1,IP:::1"
for name in "$@"; do
    names="$names,DNS:$name"
done
issue broker "$names" serverAuth
for client in fetcher operator viewer; do
    issue "$client" "DNS:$client" clientAuth
done

[ -e identities.toml ] || cat >identities.toml <<'TOML'
# The role of each identity. `certificates` are names in client certificates: a SPIFFE id, a
# DNS name, or the common name where there is neither. Lists show a holder of leases as
# identity/holder. Changes take effect with the next call.

[fetchers]
role = "fetcher"        # takes and settles leases
certificates = ["fetcher"]

[operators]
role = "operator"       # syncs, pauses, resumes
certificates = ["operator"]

[viewers]
role = "viewer"         # reads the state, as all others may too
certificates = ["viewer"]
TOML
# Only the owner enters the folder; the containers' user must be able to read its own files.
chmod 644 ./*.crt identities.toml broker.key fetcher.key operator.key viewer.key
echo "written to $PWD: ca, broker, fetcher, operator, viewer, identities.toml"
