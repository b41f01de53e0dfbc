//! What failed in TLS, in the words of whoever has to mend it.
//!
//! Each text reads on after "broker at HOST:PORT": it names what the broker showed or said, and what to
//! do. `docs/tls.md` lists them all.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use super::tls::TlsFiles;

/// The broker refused us by a TLS alert.
#[derive(Debug)]
pub(super) struct Refused(pub(super) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// What the texts need to know.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) host: String,
    pub(super) files: TlsFiles,
}

/// The error of rustls inside an error of the stream.
fn inner(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What a listener without TLS does when it reads our hello.
fn hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn date(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    chrono::DateTime::from_timestamp(seconds, 0)
        .unwrap_or(chrono::DateTime::UNIX_EPOCH)
        .to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

fn shown(file: Option<&PathBuf>) -> String {
    file.map_or_else(String::new, |file| file.display().to_string())
}

impl Context {
    /// Why the handshake failed.
    pub(super) fn handshake_failed(&self, error: &io::Error) -> String {
        match inner(error) {
            Some(Error::InvalidCertificate(problem)) => self.certificate(problem),
            Some(Error::AlertReceived(alert)) => self.alert(*alert),
            Some(Error::InvalidMessage(_)) => {
                "does not answer in TLS: is that a listener without it (mqtt:// or ws://)?"
                    .to_owned()
            }
            Some(Error::PeerIncompatible(what)) => {
                format!(
                    "shares no version or cipher of TLS with this device ({what:?}): it needs TLS 1.2 or 1.3"
                )
            }
            Some(Error::NoApplicationProtocol) => self.no_protocol(),
            Some(Error::InvalidCertRevocationList(what)) => format!(
                "cannot be checked against crl_file {} ({what:?}): renew that file",
                shown(self.files.crl_file.as_ref())
            ),
            Some(other) => format!("broke the TLS handshake: {other}"),
            None if hung_up(error) => {
                "closed the connection in the TLS handshake: is that a listener without TLS \
                 (mqtt:// or ws://)?"
                    .to_owned()
            }
            None => format!("broke off the TLS handshake: {error}"),
        }
    }

    /// Why the broker ended the connection after the handshake, if an alert says so.
    pub(super) fn refused(&self, error: &io::Error) -> Option<String> {
        match inner(error)? {
            Error::AlertReceived(alert) => Some(self.alert(*alert)),
            _ => None,
        }
    }

    fn certificate(&self, problem: &CertificateError) -> String {
        let host = &self.host;
        match problem {
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().map(|name| plain_name(name)).collect();
                let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
                format!(
                    "shows a certificate for {names}, not for {host}: use a name in the URL that \
                     the certificate has, or have it issued for {host}"
                )
            }
            CertificateError::NotValidForName => {
                format!("shows a certificate that is not for {host}: have it issued for that name")
            }
            CertificateError::ExpiredContext { time, not_after } => format!(
                "shows a certificate that expired on {}, and this device's clock says {}: have it \
                 renewed, or set the clock if that is wrong",
                date(*not_after),
                date(*time)
            ),
            CertificateError::NotValidYetContext { time, not_before } => format!(
                "shows a certificate that is not valid before {}, and this device's clock says {}: \
                 check the clock first",
                date(*not_before),
                date(*time)
            ),
            CertificateError::UnknownIssuer => match &self.files.ca_file {
                Some(file) => format!(
                    "shows a certificate of a CA that is not in ca_file {}: add that CA's \
                     certificate, if it is the right broker",
                    file.display()
                ),
                None => "shows a certificate of a CA that this system does not know: put that \
                         CA's certificate into a file and name it in ca_file"
                    .to_owned(),
            },
            CertificateError::Revoked => format!(
                "shows a certificate that its CA has revoked (crl_file {}): have a new one issued",
                shown(self.files.crl_file.as_ref())
            ),
            CertificateError::UnknownRevocationStatus => format!(
                "shows a certificate that no list in crl_file {} covers: add the list of every CA \
                 in its chain",
                shown(self.files.crl_file.as_ref())
            ),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "shows a certificate that is not meant for servers: have one issued with the \
                 extended key usage serverAuth"
                    .to_owned()
            }
            other => format!("shows a certificate that cannot be accepted: {other}"),
        }
    }

    fn alert(&self, alert: AlertDescription) -> String {
        use AlertDescription as A;
        let ours = shown(self.files.cert_file.as_ref());
        let refused = "refused our client certificate";
        match (alert, self.files.cert_file.is_some()) {
            (A::CertificateRequired, _) | (A::HandshakeFailure | A::BadCertificate, false) => {
                "wants a client certificate: set cert_file and key_file".to_owned()
            }
            (A::UnknownCA, true) => {
                format!("{refused} ({ours}), whose CA it does not know: have one issued by its CA")
            }
            (A::CertificateExpired, true) => {
                format!("{refused} ({ours}) as expired or not yet valid: renew it")
            }
            (A::CertificateRevoked, true) => {
                format!("{refused} ({ours}) as revoked: have a new one issued")
            }
            (
                A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateUnknown
                | A::AccessDenied
                | A::HandshakeFailure
                | A::DecryptError,
                true,
            ) => format!(
                "{refused} ({ours}; {alert:?}): see the broker's log; it needs the extended key \
                 usage clientAuth and a CA that the broker trusts"
            ),
            (A::ProtocolVersion | A::InsufficientSecurity, _) => {
                format!("refuses this device's TLS 1.2 and 1.3 ({alert:?}): it needs one of them")
            }
            (A::NoApplicationProtocol, _) => self.no_protocol(),
            (A::UnrecognisedName, _) => {
                format!("does not serve the name {}: is the host in the URL right?", self.host)
            }
            _ => format!("ended the connection by a TLS alert ({alert:?}): see the broker's log"),
        }
    }

    fn no_protocol(&self) -> String {
        format!("does not speak `{}`, which alpn asks for: correct or empty alpn", self.files.alpn)
    }
}

/// rustls writes `DnsName("broker.example")`, an installer reads `broker.example`.
fn plain_name(name: &str) -> &str {
    name.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(ca: Option<&str>, cert: Option<&str>) -> Context {
        let files = TlsFiles {
            ca_file: ca.map(PathBuf::from),
            cert_file: cert.map(PathBuf::from),
            ..TlsFiles::default()
        };
        Context { host: "flat.example".into(), files }
    }

    fn text(context: &Context, error: Error) -> String {
        context.handshake_failed(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn times_are_named_with_the_device_s_clock() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let early = CertificateError::NotValidYetContext { time: at(60), not_before: at(86_400) };
        let said = text(&context(None, None), Error::InvalidCertificate(early));
        assert!(said.contains("not valid before 1970-01-02T00:00:00Z"), "{said}");
        assert!(said.contains("this device's clock says 1970-01-01T00:01:00Z"), "{said}");
        assert!(said.ends_with("check the clock first"), "{said}");
    }

    #[test]
    fn an_unknown_ca_names_the_file_or_says_that_there_is_none() {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(
            text(&context(Some("/ca.pem"), None), unknown()).contains("not in ca_file /ca.pem")
        );
        assert!(text(&context(None, None), unknown()).contains("name it in ca_file"));
    }

    #[test]
    fn the_same_alert_means_something_else_with_and_without_a_certificate_of_ours() {
        let alert = || Error::AlertReceived(AlertDescription::HandshakeFailure);
        assert!(text(&context(None, None), alert()).contains("set cert_file and key_file"));
        assert!(text(&context(None, Some("/c.pem")), alert()).contains("certificate (/c.pem"));
    }

    #[test]
    fn names_are_shown_as_people_write_them() {
        assert_eq!(plain_name("DnsName(\"other.example\")"), "other.example");
        assert_eq!(plain_name("10.0.0.7"), "10.0.0.7");
    }
}
