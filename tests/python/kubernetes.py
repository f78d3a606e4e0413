"""examples/kubernetes.yaml against the program: its variables are settings, its probes and metrics
are there, and a pod that is stopped has the time it needs. On stdin: `program`, a built gritlm."""

import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import yaml
from checks import check, done, given

file = Path(__file__).parents[2] / "examples" / "kubernetes.yaml"
objects = {one["kind"]: one for one in yaml.safe_load_all(file.read_text())}
pod = objects["Deployment"]["spec"]["template"]
container = pod["spec"]["containers"][0]
labels = pod["metadata"]["labels"]
check("selected", objects["Deployment"]["spec"]["selector"]["matchLabels"], labels)
check("served", objects["Service"]["spec"]["selector"], labels)
check("kept", objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels)
scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
check("scaled", scaled, objects["Deployment"]["metadata"]["name"])
ports = {port["name"]: port["containerPort"] for port in container["ports"]}
check("target", objects["Service"]["spec"]["ports"][0]["targetPort"] in ports, True)
volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
check("volumes", {mount["name"] for mount in container["volumeMounts"]}, volumes)
claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
check("claim", claim, objects["PersistentVolumeClaim"]["metadata"]["name"])

text = subprocess.run(
    [given["program"], "serve", "--help"], capture_output=True, text=True, check=True
).stdout
settings = set(re.findall(r"\[env: (\w+)", text))
variables = {one["name"]: one["value"] for one in container["env"]}
check("variables", set(variables) - settings, set())
told = set(re.findall(r"GRITLM_\w+", file.read_text()))
check("variables in comments", told - settings, set())
image = (file.parents[1] / "Containerfile").read_text()
check("user", f"USER {pod['spec']['securityContext']['runAsUser']}\n" in image, True)
check("volume", f"VOLUME {container['volumeMounts'][0]['mountPath']}\n" in image, True)
check("port", f"EXPOSE {ports['http']}\n" in image, True)
pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
longest = pause + int(variables["GRITLM_GRACE"])
check("grace", pod["spec"]["terminationGracePeriodSeconds"] >= longest + 10, True)

environment = {name: value for name, value in os.environ.items() if name not in settings}
environment |= variables | {"GRITLM_MODEL": "demo", "GRITLM_DEVICE": "cpu", "GRITLM_PORT": "0"}
server = subprocess.Popen(
    [given["program"], "serve"], env=environment, stdout=subprocess.PIPE, text=True
)
address = server.stdout.readline().strip()


def got(path):
    """Returns the body, or the status where that is another than 200, once the model is loaded."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(address + path, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            status = error.code
            if status != 503:
                break
    return status


try:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]["httpGet"]
        check(name, (probe["port"], "ok" in str(got(probe["path"]))), ("http", True))
    annotations = pod["metadata"]["annotations"]
    check("annotated port", annotations["prometheus.io/port"], str(ports["http"]))
    metrics = got(annotations["prometheus.io/path"])
    metric = objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    check("metric", re.search(f"^# TYPE {metric} gauge$", metrics, re.MULTILINE) is not None, True)
    server.send_signal(signal.SIGTERM)
    check("stopped", server.wait(longest), 0)
finally:
    server.kill()
done("kubernetes.yaml")
