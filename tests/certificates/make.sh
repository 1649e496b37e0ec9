#!/bin/sh
# Makes all the files beside it anew (OpenSSL 3.0 or newer). Valid from 2020 on, for 100 years.
set -e
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cat >"$work/ca.cnf" <<END
[ca]
default_ca = here
[here]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:false
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
[elsewhere]
basicConstraints = CA:false
extendedKeyUsage = serverAuth
subjectAltName = DNS:elsewhere.invalid
[client]
basicConstraints = CA:false
extendedKeyUsage = clientAuth
END
: >"$work/index"

request() { # NAME KEY
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2"
    openssl req -new -key "$2" -subj "/CN=masterslave test $1" -out "$work/$1.csr"
}
sign() { # NAME EXTENSIONS ARGUMENTS...
    name=$1 extensions=$2
    shift 2
    openssl ca -batch -notext -config "$work/ca.cnf" -extensions "$extensions" \
        -startdate 20200101000000Z -enddate 21200101000000Z \
        -in "$work/$name.csr" -out "$name.pem" "$@" 2>"$work/log" || { cat "$work/log"; exit 1; }
}

for name in authority other-authority; do
    request "$name" "$work/$name.key"
    sign "$name" authority -selfsign -keyfile "$work/$name.key"
done
for name in server elsewhere client; do
    request "$name" "$name.key"
    sign "$name" "$name" -cert authority.pem -keyfile "$work/authority.key"
done
openssl pkey -aes256 -passout pass:secret -in server.key -out server-locked.key
