//! What a mount needs of the system, which part is missing, and the line that mends it.
//!
//! Looks, and changes nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bit of CAP_SYS_ADMIN in `CapEff`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Set-user-id.
const SET_UID: u32 = 0o4000;

/// Something that keeps a folder from being mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The part: `/dev/fuse`, `fusermount3`, …
    pub part: String,
    /// What is wrong with it.
    pub problem: String,
    /// What mends it: a command, where there is one.
    pub remedy: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}\n  mend it with: {}", self.part, self.problem, self.remedy)
    }
}

/// The parts of the system that matter; tests have their own.
#[derive(Debug, Clone)]
pub struct System {
    /// `/dev/fuse`.
    pub device: PathBuf,
    /// `/etc/fuse.conf`.
    pub fuse_conf: PathBuf,
    /// Folders in which programs are looked for.
    pub path: Vec<PathBuf>,
    /// Contents of `/etc/os-release`.
    pub os_release: String,
    /// The process is root.
    pub is_root: bool,
    /// It may mount by itself (CAP_SYS_ADMIN).
    pub may_mount: bool,
    /// It runs in a container.
    pub in_container: bool,
}

impl System {
    /// This one.
    pub fn this() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let capabilities = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        let mut path: Vec<PathBuf> =
            std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        // Where fuser looks besides.
        path.extend(["/sbin", "/bin"].map(PathBuf::from));
        let containers = ["/.dockerenv", "/run/.containerenv"];
        Self {
            device: PathBuf::from("/dev/fuse"),
            fuse_conf: PathBuf::from("/etc/fuse.conf"),
            path,
            os_release: std::fs::read_to_string("/etc/os-release").unwrap_or_default(),
            is_root: rustix::process::geteuid().is_root(),
            may_mount: capabilities & CAP_SYS_ADMIN != 0,
            in_container: containers.iter().any(|file| Path::new(file).exists())
                || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        }
    }

    /// Everything that keeps this system from mounting; empty if nothing does.
    ///
    /// Shape: `allow_other`: other users shall use the mount too.
    pub fn check(&self, allow_other: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.check_device());
        match self.may_mount {
            true => {}
            false if self.is_root => findings.push(Finding {
                part: "CAP_SYS_ADMIN".to_owned(),
                problem: "root here may not mount".to_owned(),
                remedy: "docker run --device /dev/fuse --cap-add SYS_ADMIN … (with AppArmor also \
                         --security-opt apparmor=unconfined)"
                    .to_owned(),
            }),
            false => {
                findings.extend(self.check_helper());
                if allow_other {
                    findings.extend(self.check_allow_other());
                }
            }
        }
        findings
    }

    fn check_device(&self) -> Option<Finding> {
        let opened = File::options().read(true).write(true).open(&self.device);
        let error = opened.err()?;
        let container = "docker run --device /dev/fuse --cap-add SYS_ADMIN …";
        let (problem, remedy) = match error.kind() {
            io::ErrorKind::NotFound if self.in_container => ("the container has no such device", container.to_owned()),
            io::ErrorKind::NotFound => {
                ("there is no such device: the kernel's fuse module is not loaded", self.as_root("modprobe fuse"))
            }
            io::ErrorKind::PermissionDenied if self.is_root => ("the container may not open it", container.to_owned()),
            io::ErrorKind::PermissionDenied => {
                ("you may not open it", self.as_root(&format!("chmod 666 {}", self.device.display())))
            }
            _ => {
                return Some(Finding {
                    part: self.device.display().to_string(),
                    problem: error.to_string(),
                    remedy: self.as_root("modprobe fuse"),
                });
            }
        };
        Some(Finding { part: self.device.display().to_string(), problem: problem.to_owned(), remedy })
    }

    fn check_helper(&self) -> Option<Finding> {
        let finding = |problem: String, remedy: String| Finding { part: "fusermount3".to_owned(), problem, remedy };
        let found = ["fusermount3", "fusermount"].iter().find_map(|name| self.program(name));
        let Some(path) = found else {
            let problem = "not installed, and only root mounts without it".to_owned();
            return Some(finding(problem, self.as_root(self.install_fuse())));
        };
        let metadata = path.metadata().ok()?;
        (metadata.uid() != 0 || metadata.permissions().mode() & SET_UID == 0).then(|| {
            let problem = format!("{} does not run as root, and only root mounts without it", path.display());
            let mend = format!("chown root {0} && sudo chmod 4755 {0}", path.display());
            finding(problem, self.as_root(&mend))
        })
    }

    fn check_allow_other(&self) -> Option<Finding> {
        let conf = std::fs::read_to_string(&self.fuse_conf).unwrap_or_default();
        let allowed = conf.lines().any(|line| line.trim() == "user_allow_other");
        (!allowed).then(|| Finding {
            part: self.fuse_conf.display().to_string(),
            problem: "lacks user_allow_other, without which only root may use --allow-other".to_owned(),
            remedy: format!("echo user_allow_other | sudo tee -a {}", self.fuse_conf.display()),
        })
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        self.path.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    fn as_root(&self, command: &str) -> String {
        match self.is_root {
            true => command.to_owned(),
            false => format!("sudo {command}"),
        }
    }

    fn install_fuse(&self) -> &'static str {
        let ids: Vec<&str> = self
            .os_release
            .lines()
            .filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")))
            .flat_map(|value| value.trim_matches('"').split(' '))
            .collect();
        let is = |names: &[&str]| ids.iter().any(|id| names.contains(id));
        if is(&["fedora", "rhel", "centos"]) {
            "dnf install -y fuse3"
        } else if is(&["alpine"]) {
            "apk add fuse3"
        } else if is(&["arch"]) {
            "pacman -S --noconfirm fuse3"
        } else if is(&["suse", "opensuse"]) {
            "zypper install -y fuse3"
        } else {
            "apt-get install -y fuse3"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(folder: &Path) -> System {
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(folder.join("fuse"), "").unwrap();
        System {
            device: folder.join("fuse"),
            fuse_conf: folder.join("fuse.conf"),
            path: vec![bin],
            os_release: "NAME=x\nID=debian\n".to_owned(),
            is_root: false,
            may_mount: false,
            in_container: false,
        }
    }

    fn only(findings: Vec<Finding>) -> Finding {
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.into_iter().next().unwrap()
    }

    #[test]
    fn a_missing_device_is_named_with_what_brings_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut system = System { may_mount: true, is_root: true, ..system(folder.path()) };
        assert!(system.check(true).is_empty());
        system.device = folder.path().join("none");
        assert_eq!(only(system.check(false)).remedy, "modprobe fuse");
        system.in_container = true;
        assert!(only(system.check(false)).remedy.contains("--device /dev/fuse"));
    }

    #[test]
    fn root_without_the_capability_learns_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let system = System { is_root: true, ..system(folder.path()) };
        assert_eq!(only(system.check(true)).part, "CAP_SYS_ADMIN");
    }

    #[test]
    fn a_user_needs_the_helper_of_the_right_package() {
        let folder = tempfile::tempdir().unwrap();
        let mut system = system(folder.path());
        assert_eq!(only(system.check(false)).remedy, "sudo apt-get install -y fuse3");
        system.os_release = "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n".to_owned();
        assert_eq!(only(system.check(false)).remedy, "sudo dnf install -y fuse3");
        let helper = folder.path().join("bin/fusermount3");
        std::fs::write(&helper, "").unwrap();
        assert!(only(system.check(false)).problem.contains("does not run as root"));
    }

    #[test]
    fn other_users_need_a_line_in_fuse_conf() {
        let folder = tempfile::tempdir().unwrap();
        let system = system(folder.path());
        std::fs::write(&system.fuse_conf, "# user_allow_other\n").unwrap();
        let with = |allow| system.check(allow).iter().filter(|finding| finding.remedy.contains("tee -a")).count();
        assert_eq!((with(false), with(true)), (0, 1));
        std::fs::write(&system.fuse_conf, "mount_max = 5\nuser_allow_other\n").unwrap();
        assert_eq!(with(true), 0);
    }
}
