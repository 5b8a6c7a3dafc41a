//! The reference that people have today: sshfs, over a real sshd on loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::harness::eventually;
use super::harness::process::{force_unmount, free_port};
use super::measure::seconds;

/// An sshd with keys of its own.
pub(crate) struct Sshd {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Sshd {
    pub(crate) fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("make sshd's folder");
        std::fs::create_dir_all("/run/sshd").expect("make /run/sshd, as root");
        let at = folder.display();
        seconds(&format!("ssh-keygen -q -t ed25519 -N '' -f {at}/host; ssh-keygen -q -t ed25519 -N '' -f {at}/user"));
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\n\
             UsePAM no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
        );
        std::fs::write(folder.join("config"), config).expect("write sshd's configuration");
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f"])
            .arg(folder.join("config"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start sshd: `make setup-bench` installs it");
        Self { child, port, folder: folder.to_owned() }
    }

    /// Mount `source` of this machine at `target`, with empty caches, as sshfs is when nobody tunes it.
    pub(crate) fn mount(&self, source: &Path, target: &Path) -> SshMount {
        self.mount_with(source, target, "")
    }

    /// The same with four connections, and with the kernel reading ahead as far as at our own mounts.
    pub(crate) fn mount_tuned(&self, source: &Path, target: &Path) -> SshMount {
        let mounted = self.mount_with(source, target, ",max_conns=4");
        super::mounts::read_ahead_1_mib(target);
        mounted
    }

    fn mount_with(&self, source: &Path, target: &Path, options: &str) -> SshMount {
        std::fs::create_dir_all(target).expect("make the mount point");
        let line = format!(
            "sshfs -p {} -o IdentityFile={}/user,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR{options} root@127.0.0.1:{} {}",
            self.port,
            self.folder.display(),
            source.display(),
            target.display()
        );
        eventually("sshfs mounts", Duration::from_secs(10), || {
            Command::new("bash").args(["-c", &line]).stderr(Stdio::null()).status().expect("start bash").success()
        });
        SshMount { target: target.to_owned() }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Unmounted when dropped.
pub(crate) struct SshMount {
    target: PathBuf,
}

impl Drop for SshMount {
    fn drop(&mut self) {
        Command::new("fusermount3").arg("-u").arg(&self.target).status().ok();
        force_unmount(&self.target);
    }
}
