#!/bin/sh
# Makes what the servers of the private network serve; runs in the tree of the Debian guest's files, with /srv the web
# server's directory and /mnt that of the others, both empty. $1 is the address to serve on.
set -eu
export GNUPGHOME=/mnt/gnupg

# A repository of git's: some history, and enough in it that a clone takes several segments.
git init -q -b main /mnt/work
cd /mnt/work
for n in $(seq 20); do
	seq "$n" 500 >"file-$n"
	git add .
	git -c user.name=Nobody -c user.email=nobody@invalid commit -q -m "Add file $n"
done
head -c 300000 /dev/urandom >noise
git add .
git -c user.name=Nobody -c user.email=nobody@invalid commit -q -m "Add noise"
git clone -q --bare /mnt/work /mnt/git/repository.git
git rev-parse HEAD >/mnt/head

# A mirror with one package, signed by a key of its own.
mkdir -p /mnt/package/DEBIAN /mnt/package/usr/share /srv/debian/pool /srv/debian/dists/private/main/binary-amd64
cat >/mnt/package/DEBIAN/control <<-END
	Package: from-the-mirror
	Version: 1.0
	Architecture: all
	Maintainer: Nobody <nobody@invalid>
	Description: shows that a package came whole
END
head -c 300000 /dev/urandom >/mnt/package/usr/share/from-the-mirror
sha256sum </mnt/package/usr/share/from-the-mirror >/mnt/package.sha256
dpkg-deb --build --root-owner-group /mnt/package /srv/debian/pool/from-the-mirror_1.0_all.deb
cd /srv/debian
apt-ftparchive packages pool >dists/private/main/binary-amd64/Packages
gzip -k dists/private/main/binary-amd64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Codename=private -o APT::FTPArchive::Release::Components=main \
	-o APT::FTPArchive::Release::Architectures=amd64 release dists/private >/mnt/Release
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-generate-key mirror@invalid ed25519 sign never
gpg --batch --quiet --clearsign --output dists/private/InRelease /mnt/Release
gpg --batch --quiet --armor --export >/mnt/mirror.asc
gpgconf --kill gpg-agent

# A page that a browser must run and fetch more for: it says how many of its scripts came.
{
	echo '<!doctype html><title>Scripts</title><p id="said">nothing ran</p>'
	for n in $(seq 20); do
		echo "<script src=\"script/$n.js\"></script>"
	done
} >/srv/browser.html
mkdir /srv/script
for n in $(seq 20); do
	echo "window.came = (window.came || 0) + 1; document.getElementById('said').textContent = came + ' scripts ran';" >"/srv/script/$n.js"
done

# sshd, with keys of its own and one that may log in.
ssh-keygen -q -t ed25519 -N '' -f /mnt/host_key
ssh-keygen -q -t ed25519 -N '' -f /mnt/client_key
cp /mnt/client_key.pub /mnt/authorized_keys
mkdir -p /run/sshd
cat >/mnt/sshd_config <<-END
	ListenAddress $1
	Port 2222
	HostKey /mnt/host_key
	AuthorizedKeysFile /mnt/authorized_keys
	PasswordAuthentication no
	PermitRootLogin prohibit-password
	StrictModes no
	UsePAM no
	PidFile none
END
