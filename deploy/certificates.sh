#!/usr/bin/env bash
# Makes the certificates of the extender for an installation without helm (deploy/manifests.yaml):
#
#   deploy/certificates.sh NAMESPACE [NAME-OR-ADDRESS…]
#
# A new certificate authority signs the extender's certificate (Secret migcompat-extender-tls) and kube-scheduler's
# client certificate (Secret migcompat-scheduler-client); its key is thrown away. The authority's certificate goes
# into the webhook's configuration. Run it again to renew everything. Needs kubectl and openssl 1.1.1 or newer.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: $0 NAMESPACE [NAME-OR-ADDRESS...]" >&2
  exit 2
fi
namespace=$1
shift
for tool in kubectl openssl base64; do
  command -v "$tool" >/dev/null || {
    echo "$0: this script needs the program $tool, which is not on the PATH; install it and run this again." \
      "Nothing has been changed." >&2
    exit 1
  }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 077
cd "$work"

service=migcompat-extender.$namespace
names=DNS:migcompat-extender,DNS:$service,DNS:$service.svc,DNS:$service.svc.cluster.local,DNS:localhost,IP:127.0.0.1
for extra in "$@"; do
  if [[ $extra =~ ^[0-9.]+$ || $extra == *:* ]]; then names+=,IP:$extra; else names+=,DNS:$extra; fi
done

key() { openssl ecparam -genkey -name prime256v1 -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }

issue() { # file, common name, usage, subject alternative names (may be empty)
  key "$1.key"
  openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$3"
    [ -z "$4" ] || echo "subjectAltName=$4"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -sha256 \
    -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}

key ca.key
openssl req -x509 -new -key ca.key -subj "/CN=migcompat-extender-ca" -days 3650 -sha256 -out ca.crt
issue server "$service.svc" serverAuth "$names"
issue client kube-scheduler clientAuth ""

secret() { # name, file
  kubectl create secret generic "$1" --namespace "$namespace" --type kubernetes.io/tls --dry-run=client -o yaml \
    --from-file=tls.crt="$2.crt" --from-file=tls.key="$2.key" --from-file=ca.crt=ca.crt |
    kubectl apply --server-side --force-conflicts -f -
}
secret migcompat-extender-tls server
secret migcompat-scheduler-client client

kubectl patch mutatingwebhookconfiguration migcompat-extender --type=json -p "[{
  \"op\": \"add\",
  \"path\": \"/webhooks/0/clientConfig/caBundle\",
  \"value\": \"$(base64 <ca.crt | tr -d '\n')\"
}]"
